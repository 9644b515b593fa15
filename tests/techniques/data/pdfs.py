"""PDF files written byte by byte, so that what is in them is known without a library that reads them."""

import zlib


def pdf(pages, outline=(), compress=False, title="", encrypt=False) -> bytes:
    """`pages` hold (size, text) lines, set one below the other; `outline` holds (title, page number from 1)."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(count))
    first = 4 + 2 * count  # object number of the outline
    objects = [f"<< /Type /Catalog /Pages 2 0 R{f' /Outlines {first} 0 R' if outline else ''} >>".encode(),
               f"<< /Type /Pages /Count {count} /Kids [{kids}] >>".encode(),
               b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    for i, lines in enumerate(pages):
        y, said = 780, []
        for size, text in lines:
            escaped = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
            said.append(f"BT /F1 {size} Tf 1 0 0 1 50 {y} Tm ({escaped}) Tj ET")
            y -= 2 * size
        stream = "\n".join(said).encode("latin-1")
        packed = zlib.compress(stream) if compress else stream
        objects += [f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents {5 + 2 * i} 0 R "
                    "/Resources << /Font << /F1 3 0 R >> >> >>".encode(),
                    f"<< /Length {len(packed)}{' /Filter /FlateDecode' if compress else ''} >>\nstream\n".encode()
                    + packed + b"\nendstream"]
    if outline:
        objects.append(f"<< /Type /Outlines /First {first + 1} 0 R /Last {first + len(outline)} 0 R "
                       f"/Count {len(outline)} >>".encode())
        for n, (name, page) in enumerate(outline):
            following = f" /Next {first + n + 2} 0 R" if n + 1 < len(outline) else ""
            objects.append(f"<< /Title ({name}) /Parent {first} 0 R /Dest [{2 + 2 * page} 0 R /XYZ 0 800 0]{following} >>"
                           .encode())
    extra = ""
    if title:
        objects.append(f"<< /Title ({title}) >>".encode())
        extra += f" /Info {len(objects)} 0 R"
    if encrypt:
        key = "00" * 32
        objects.append(f"<< /Filter /Standard /V 1 /R 2 /P -4 /O <{key}> /U <{key}> >>".encode())
        extra += f" /Encrypt {len(objects)} 0 R /ID [<00> <00>]"
    made, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(made))
        made += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    table = b"".join(f"{place:010d} 00000 n \n".encode() for place in places)
    return made + (f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode() + table
                   + f"trailer << /Size {len(objects) + 1} /Root 1 0 R{extra} >>\nstartxref\n{len(made)}\n%%EOF\n".encode())
