-- A dozen albums for an empty table. May be loaded again and again: it never touches rows that are there.

INSERT INTO album (title, artist, price)
SELECT title, artist, price
  FROM (VALUES
    ('Blue Train', 'John Coltrane', 56.99),
    ('Giant Steps', 'John Coltrane', 63.99),
    ('Jeru', 'Gerry Mulligan', 17.99),
    ('Sarah Vaughan', 'Sarah Vaughan', 34.98),
    ('Kind of Blue', 'Miles Davis', 42.00),
    ('Somethin'' Else', 'Cannonball Adderley', 38.50),
    ('Time Out', 'The Dave Brubeck Quartet', 29.90),
    ('Mingus Ah Um', 'Charles Mingus', 31.25),
    ('Moanin''', 'Art Blakey', 27.49),
    ('Waltz for Debby', 'Bill Evans', 33.00),
    ('Monk''s Dream', 'Thelonious Monk', 24.75),
    ('Ella & Louis', 'Ella Fitzgerald', 19.95)
  ) AS seed (title, artist, price)
 WHERE NOT EXISTS (SELECT FROM album);
