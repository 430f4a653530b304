"""The server: point it at exported vision models, send pictures over HTTP, get typed results."""
