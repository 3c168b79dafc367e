"""What a person looks at: self-contained HTML pages, pictures of graphs and measurements, terminal tables."""
