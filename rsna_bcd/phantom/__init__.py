"""The phantom: breasts, lesions and machines of a synthetic competition."""
