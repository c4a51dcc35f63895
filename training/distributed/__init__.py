"""Where ranks come from, how they are grouped, and what they compute on."""
