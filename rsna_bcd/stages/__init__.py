"""What the commands do: each is imported by its command once the settings are checked."""
