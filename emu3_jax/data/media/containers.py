"""Video containers: which are opened, which stream is the film, and whether all of it is there."""

import io
import re
from dataclasses import dataclass

from emu3_jax.data.media.images import MAX_IMAGE_PIXELS
from emu3_jax.data.media.sizes import MediaError
from emu3_jax.foreign import optional

# FFmpeg's names of the containers that are read, and how messages call them. FFmpeg would also
# take playlists, lists of image files and descriptions of network streams for clips.
CONTAINERS = {
    "mov": "MP4",
    "matroska": "Matroska",
    "avi": "AVI",
    "flv": "FLV",
    "ogg": "Ogg",
    "mpegts": "MPEG-TS",
    "mpeg": "MPEG-PS",
}
WITHOUT_LENGTH = ("ogg", "mpegts", "mpeg")
# In seconds: containers round time stamps to a millisecond or to a tick.
TIME_TOLERANCE = 0.002
# In frames: a clip that ends earlier than its container states lacks its last frame.
MISSING_FRAME = 0.75
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp")
# In bytes. The longer packets carry a time stamp (Blu-ray) or error correction (broadcast).
TS_PACKETS = (188, 192, 204)
TS_SYNC = 0x47
OGG_FIRST, OGG_LAST = 0x02, 0x04  # flags of a stream's first and last page
GIF_IMAGE, GIF_EXTENSION, GIF_END = 0x2C, 0x21, 0x3B
OPTIONS = {
    # No demuxer may open anything else than the bytes that it was given.
    "protocol_whitelist": "none",
    "format_whitelist": ",".join(CONTAINERS),
}
# A damaged frame is an error and not patched with its neighbours; FFmpeg checks the size of a
# frame before it takes the memory.
DECODER_OPTIONS = {"err_detect": "explode", "max_pixels": str(MAX_IMAGE_PIXELS)}


@dataclass(frozen=True)
class Survey:
    """What the packets of a film say before any is decoded.

    Attributes:
      kind: the container, by FFmpeg's name.
      stamps: when the frames start, in order, in seconds on the container's own clock.
      end: of the last frame, on the same clock.
      rate: frames per second, as stated or guessed.
    """

    kind: str
    stamps: tuple[float, ...]
    end: float
    rate: float

    @property
    def seconds(self) -> float:
        """From the start of the first frame to the end of the last one."""
        return self.end - min(self.stamps, default=self.end)


def film_package():
    """PyAV: slow to import, and images do not need it."""
    return optional("av", "a clip", "-r requirements.txt")


def open_container(content: bytes, label: str):
    """The opened container (a context manager) of a video file's bytes."""
    av = film_package()

    try:
        return av.open(
            io.BytesIO(content),
            container_options=OPTIONS,
            options={"max_pixels": DECODER_OPTIONS["max_pixels"]},
        )
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        known = ", ".join(CONTAINERS.values())
        # No cause: the bytes are in memory, so that even FFmpeg's input errors are the file's.
        raise MediaError(
            f"{label}: the clip cannot be opened ({reason(error)}); expected an animated GIF, "
            f"WebP or PNG, or a whole file in one of the containers {known}"
        ) from None


def reason(error: Exception) -> str:
    """FFmpeg's words for an error, without its number."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def film_stream(container, label: str):
    """The stream that a player shows: the default one, or else the first; never a cover image."""
    av = film_package()
    cover = av.stream.Disposition.attached_pic
    films = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not films:
        found = "only a cover image" if container.streams.video else "no video stream"
        raise MediaError(f"{label}: the file holds {found}, expected a film")
    default = av.stream.Disposition.default
    return next((stream for stream in films if stream.disposition & default), films[0])


def survey(content: bytes, label: str) -> Survey:
    """Reads all packets and compares where they end with what the container states.

    Raises MediaError for a container that was cut short or whose packets are damaged.
    """
    _check_last_bytes(content, label)
    with open_container(content, label) as container:
        film = film_stream(container, label)
        rate = float(film.average_rate or film.guessed_rate or 25)
        kind = container.format.name.split(",")[0]
        stamps, end, end_of_any = [], 0.0, 0.0
        for packet in container.demux():
            stamp = packet.dts if kind == "avi" or packet.pts is None else packet.pts
            if stamp is None or not packet.size:
                continue
            begins = float(stamp * packet.time_base)
            ends = begins + float((packet.duration or 0) * packet.time_base)
            end_of_any = max(end_of_any, ends)
            if packet.stream.index != film.index or packet.is_discard:
                continue
            if packet.is_corrupt:
                raise MediaError(f"{label}: the file is damaged or cut short at {begins:.3f} s")
            if not packet.duration:
                ends += 1 / rate
            stamps.append(begins)
            end = max(end, ends)
        if kind == "mov" and film.duration and stamps:
            # Lengths there are from packet to packet in the order of decoding.
            end = min(end, min(stamps) + float(film.duration * film.time_base))
        found = Survey(kind, tuple(sorted(stamps)), end, rate)
        _check_length(container, film, found, max(end, end_of_any), label)
    return found


def _check_length(container, film, found: Survey, end: float, label: str) -> None:
    """Compares the packets with the seconds or frames that the container states, if it does.

    MP4 states the length of each stream; the number of frames there counts those that an edit
    list hides. AVI states frames, and FFmpeg cuts its seconds to what is left of the file. The
    others state the end of the longest stream, film or not.
    """
    kind, seconds, stated = found.kind, found.seconds, None
    if kind == "mov" and film.duration:
        stated = float(film.duration * film.time_base)
    elif kind == "avi":
        stated = film.frames / found.rate
    elif kind in ("matroska", "flv") and container.duration:
        seconds, stated = end, container.duration / 1e6
    if stated is not None and seconds < stated - MISSING_FRAME / found.rate - TIME_TOLERANCE:
        frames = f" and {film.frames} frames" if film.frames else ""
        raise MediaError(
            f"{label}: the clip is cut short: the container states {stated:.3f} s{frames}, "
            f"found {seconds:.3f} s and {len(found.stamps)} frames"
        )


def _check_last_bytes(content: bytes, label: str) -> None:
    """Whether the last box of MP4, packet of MPEG-TS and page of Ogg are whole.

    FFmpeg takes any end of these files for theirs; the last two state no length at all.
    """
    if content[4:8] in MP4_BOXES:
        _check_boxes(content, label)
    for size in TS_PACKETS:
        first = size - 188 if size == 192 else 0
        syncs = content[first : first + 5 * size : size]
        if len(syncs) == 5 and syncs == bytes([TS_SYNC]) * 5 and len(content) % size:
            raise MediaError(
                f"{label}: the clip is cut short: expected MPEG-TS packets of {size} bytes, "
                f"found {len(content) % size} bytes after the last"
            )
    if content[:4] == b"OggS":
        # A page: "OggS", version 0, flags, 8 bytes of position, 4 bytes that name the stream.
        pages = [(p[5], p[14:]) for p in re.findall(rb"(?s)OggS\0.{13}", content)]
        begun, ended = (
            {stream for flags, stream in pages if flags & flag} for flag in (OGG_FIRST, OGG_LAST)
        )
        if begun - ended:
            raise MediaError(
                f"{label}: the clip is cut short: found the last page of {len(begun & ended)} of "
                f"{len(begun)} streams"
            )


def _check_boxes(content: bytes, label: str) -> None:
    """Whether every box of an MP4 (ISO/IEC 14496-12, 4.2) ends within the file."""
    position = 0
    while position + 8 <= len(content):
        size = int.from_bytes(content[position : position + 4], "big")
        if size == 1:  # 64 bits follow the name
            size = int.from_bytes(content[position + 8 : position + 16], "big")
        if size < 8:  # 0: to the end of the file
            return
        position += size
    if position > len(content):
        raise MediaError(
            f"{label}: the clip is cut short: its boxes state {position} bytes, "
            f"found {len(content)}"
        )


def check_gif(content: bytes, label: str) -> None:
    """Raises MediaError for a GIF without its closing byte, which Pillow takes for whole."""
    position = 13 + _gif_colors(content[10:11])
    while position < len(content):
        kind = content[position]
        if kind == GIF_END:
            return
        if kind == GIF_IMAGE:
            position += 11 + _gif_colors(content[position + 9 : position + 10])
        elif kind == GIF_EXTENSION:
            position += 2
        else:
            position += 1  # readers pass over bytes between blocks
            continue
        while position < len(content) and content[position]:
            position += 1 + content[position]
        position += 1
    raise MediaError(f"{label}: the GIF is cut short: it ends without its closing byte")


def _gif_colors(flags: bytes) -> int:
    """Bytes of the colour table that these flags announce."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0
