"""What a constitution is and how it becomes a system message. Knows nothing of HTTP, of users or of the store."""
