"""What torch's functions, methods, modules and aten ops mean in `ir.ops`."""
