"""The models that the package ships, and the code that finds them."""
