"""The Postgres side: tables, connections, statements, translated errors."""
