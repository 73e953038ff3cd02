"""What suites time (our backends, other libraries, plain PyTorch models) and the gate it must pass."""
