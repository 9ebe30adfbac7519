"""What is known of dtypes and ops, once: the rows that frontends, passes and runners take their tables from."""
