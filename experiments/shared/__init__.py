"""What several experiments share. Nothing here runs by itself, and no experiment imports another."""
