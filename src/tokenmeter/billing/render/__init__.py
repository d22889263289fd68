"""The forms of invoices and credit notes: HTML, PDF and CSV."""
