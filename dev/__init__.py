"""What serves development only: nothing here is in an image."""
