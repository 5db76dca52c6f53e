"""Operations that must be faster than their usual form."""
