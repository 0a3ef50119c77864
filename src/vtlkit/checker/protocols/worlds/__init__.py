"""What the protocols over the code that ships are made of: imported when one of them is built."""
