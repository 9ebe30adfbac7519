"""The ring of habits: small models, each one habit of real code, which every verb must take in every kind or refuse truly."""
