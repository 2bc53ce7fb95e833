"""From footage to bundle: autoencoders, training, and the export of deployable graphs."""
