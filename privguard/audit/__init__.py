"""What an attacker learns."""
