"""Any module made readable."""
