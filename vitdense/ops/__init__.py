"""Operations that are worth more than one way of computing them."""
