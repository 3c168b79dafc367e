"""Where the rows of tables come from before they are trained, and what becomes of the user's own tables then."""
