"""HTTP: the pages, the read API, and who may use them."""
