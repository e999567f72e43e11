"""Who may come in: API keys and TLS certificates, each read anew when its file changes."""
