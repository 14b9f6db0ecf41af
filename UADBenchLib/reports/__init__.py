"""What people read: figures, tables and HTML pages made from results."""
