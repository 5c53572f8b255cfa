"""Pictures and the HTML page of trained networks, from what their evaluation left."""
