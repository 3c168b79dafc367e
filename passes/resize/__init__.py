"""Shape repair: finds out which sizes must change behind the towers, and makes layers of those sizes."""
