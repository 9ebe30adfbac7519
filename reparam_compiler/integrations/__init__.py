"""Other compilers that call this one."""
