"""Where the package meets other frameworks; one folder per framework, none imported before it is asked for."""
