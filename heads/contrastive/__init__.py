"""What contrastive heads are made of: text towers, tokenizers and losses."""
