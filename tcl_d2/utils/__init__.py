"""What all parts share and none owns: files, tensors, errors, drawing."""
