"""Which row gets how many layers: the table's store, the allocation, and policies made of them."""
