"""The work of the commands: each is imported by its command once the settings are checked."""
