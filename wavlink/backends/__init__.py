"""Other ways to run the towers than torch's own."""
