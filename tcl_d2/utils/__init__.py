"""What all parts of the package share: files, tensors, error messages, drawing."""
