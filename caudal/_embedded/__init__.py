"""How the embedded servers are fetched, configured, started and stopped. `caudal.embedded` is the way in."""
