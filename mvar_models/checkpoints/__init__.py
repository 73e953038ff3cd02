"""Names to weights and back."""
