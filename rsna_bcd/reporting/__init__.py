"""Pictures of what the stages made, for those who would rather look than read."""
