-- The albums service's only table. May be loaded again and again.

CREATE TABLE IF NOT EXISTS album (
  id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  title  text NOT NULL
         CONSTRAINT album_title_not_blank CHECK (title ~ '\S')
         CONSTRAINT album_title_length CHECK (char_length(title) <= 255),
  artist text NOT NULL
         CONSTRAINT album_artist_not_blank CHECK (artist ~ '\S')
         CONSTRAINT album_artist_length CHECK (char_length(artist) <= 255),
  price  numeric(10, 2) NOT NULL
         CONSTRAINT album_price_not_negative CHECK (price >= 0)
);

-- One artist's albums, or those of one title, in the order of their ids; and all in the orders that lists have, so that
-- a page costs the same however far it is from the first.
CREATE INDEX IF NOT EXISTS album_artist_id ON album (artist, id);
CREATE INDEX IF NOT EXISTS album_title_id ON album (title, id);
CREATE INDEX IF NOT EXISTS album_price_id ON album (price, id);
