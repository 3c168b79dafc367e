"""The demo: a flat DLRM on real flights, trained four ways."""
