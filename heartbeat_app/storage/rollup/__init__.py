"""Minutes and hours, computed anew where beats came in."""
