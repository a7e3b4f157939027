"""Documents -> passages -> rows with skipped position indices -> tensors."""
