"""What passes find out about a graph before they change it: table calls, ids, names of features."""
