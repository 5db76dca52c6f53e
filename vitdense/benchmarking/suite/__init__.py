"""What is measured: rows of ours and the peers' doing the same work; `catalogue.py` lists them."""
