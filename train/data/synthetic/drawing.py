"""Draws a person with given facial action units under a given view; see face.py for the units of length."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from train.data.synthetic.canvas import CIRCLE, NEUTRAL_SHADE, Sheet, curve, lit, mirrored
from train.data.synthetic.face import Person, View, mix, scaled

SPAN = np.linspace(-1.0, 1.0, 17)  # along a lid or a lip, from its left end to its right
ARCH = 1.0 - SPAN**2
LEFT = SPAN < 0


def _head(sheet: Sheet, person: Person, jaw_drop: float) -> None:
    skin, chin = person.skin, person.chin + jaw_drop
    if person.hair_style == "long":
        sheet.add(
            mirrored((0, -1.38), (0.8, -1.2), (1.12, -0.5), (1.15, 0.5), (1.1, 1.35), (0, 1.45)),
            scaled(person.hair, 0.8),
            flat=True,
        )
    sheet.add(mirrored((0, 1.3), (1.0, 1.45), (2.0, 1.75), (2.2, 2.8), (0, 2.8)), person.shirt, flat=True)
    neck = np.array([(-0.5, 0.6), (0.5, 0.6), (0.56, 1.42), (0, 1.62), (-0.56, 1.42)])
    sheet.add(neck, scaled(skin, 0.78), flat=True)
    for side in (-1, 1):
        sheet.add(CIRCLE * (0.12, 0.22) + (side * 0.97, -0.02), scaled(skin, 0.9), flat=True)
        sheet.add(CIRCLE * (0.06, 0.13) + (side * 1.0, -0.02), scaled(skin, 0.75), flat=True)
    outline = mirrored(
        (0, -1.25),
        (0.55, -1.13),
        (0.88, -0.72),
        (0.965, -0.2),
        (0.91, 0.28 + 0.1 * jaw_drop),
        (person.jaw, 0.76 + 0.4 * jaw_drop),
        (0.42, 1.05 + 0.85 * jaw_drop),
        (0, chin),
    )
    sheet.add(outline, skin, flat=True)
    sheet.blob(0, -0.72, 0.5, 0.2, 1.07, "soft")
    for side in (-1, 1):
        sheet.blob(side * 0.52, 0.24, 0.2, 0.15, 1.05, "soft")


def _beard(sheet: Sheet, person: Person, jaw_drop: float) -> None:
    if person.beard not in ("full", "stubble", "goatee"):
        return
    top = person.mouth_y - 0.2
    color = mix(person.hair, person.skin, 0.62 if person.beard == "stubble" else 0.12)
    chin, low = person.chin + jaw_drop, 0.85 * jaw_drop
    if person.beard == "goatee":
        shape = mirrored((0, top), (0.3, top + 0.06), (0.4, person.mouth_y + low), (0.3, chin - 0.1), (0, chin))
    else:
        shape = mirrored(
            (0, top),
            (0.42, top + 0.06),
            (0.72, 0.42),
            (0.9, 0.16),
            (0.91, 0.3),
            (person.jaw, 0.76 + 0.4 * jaw_drop),
            (0.42, 1.05 + low),
            (0, chin + 0.02),
        )
    sheet.add(shape, color, flat=False)


def _eye(sheet: Sheet, person: Person, view: View, side: int, units: list[float]) -> None:
    lid_raise, cheek, tight, wrinkle, closed = units[5], units[6], units[7], units[9], units[43]
    wide, cx, cy = person.eye_width, side * person.eye_x, person.eye_y
    up = person.eye_height * (1 + 0.75 * lid_raise - 0.35 * tight - 0.2 * cheek - 0.25 * wrinkle) * (1 - 0.85 * closed)
    low = person.eye_height * (0.62 + 0.2 * lid_raise - 0.45 * tight - 0.6 * cheek - 0.35 * wrinkle)
    up = max(up, 0.012 - low, 0.012)
    x = cx + SPAN * wide
    slope = cy - side * SPAN * person.eye_tilt
    upper, lower = slope - up * ARCH**0.8, slope + low * ARCH
    skin = person.skin
    sheet.blob(cx, cy - 0.08, 0.24, 0.14, 0.86, "soft")
    bag = np.stack([x, lower + 0.07 + 0.03 * cheek], 1)
    sheet.line(bag, 0.05, 0.9 - 0.15 * cheek - 0.08 * person.age, layer="fine")
    white = np.concatenate([np.stack([x, upper], 1), np.stack([x, lower], 1)[::-1]])
    sheet.add(white, (238, 234, 230))
    at = (cx + 0.045 * view.gaze[0], cy - 0.008 + 0.03 * view.gaze[1])
    for radius, color in ((0.098, scaled(person.iris, 0.8)), (0.05, (14, 12, 12))):
        disc = CIRCLE * radius + at
        t = (disc[:, 0] - cx) / wide
        arch, tilt = np.maximum(1 - t**2, 0), cy - side * t * person.eye_tilt
        disc[:, 1] = np.clip(disc[:, 1], tilt - up * arch**0.8, tilt + low * arch)
        sheet.add(disc, color)
    if up > 0.05:
        sheet.blob(at[0] - 0.03, at[1] - 0.03, 0.018, 0.018, (250, 250, 250))
    sheet.line(np.stack([x, upper], 1), person.lashes, mix(scaled(skin, 0.3), (20, 14, 14), 0.6))
    sheet.line(np.stack([x, lower], 1)[2:-2], 0.018, scaled(skin, 0.62))
    fold = np.stack([x, upper - 0.05 - 0.03 * (1 - lid_raise)], 1)[1:-1]
    sheet.line(fold, 0.022, 0.78 + 0.1 * person.lid_fold, layer="fine")
    if (crow := cheek - 0.2 + 0.3 * person.age) > 0.15:
        for tip in (-0.1, 0.0, 0.1):
            start, stop = cx + side * (wide + 0.06), cx + side * (wide + 0.2)
            sheet.line(curve((start, cy + 0.4 * tip), (stop, cy + tip)), 0.025, 1 - 0.35 * crow, layer="fine")


def _brow(sheet: Sheet, person: Person, side: int, units: list[float]) -> None:
    inner_up, outer_up, down, wrinkle = units[1], units[2], units[4], units[9]
    pressed = down * (1 - 0.65 * inner_up)  # the frontalis holds the inner brow up against the corrugator
    y = person.eye_y - person.brow_gap + person.brow_rest - 0.03 * units[5]
    inner = y - 0.19 * inner_up + 0.17 * pressed + 0.07 * wrinkle
    middle = y - person.brow_arch - 0.08 * inner_up - 0.13 * outer_up + 0.11 * pressed + 0.03 * wrinkle
    outer = y + 0.03 - 0.18 * outer_up + 0.03 * pressed + 0.08 * inner_up * (1 - outer_up)
    x = person.eye_x
    in_x = x - 0.21 - 0.07 * down
    arc = curve(
        (side * in_x, inner),
        (side * (x - 0.1 - 0.03 * down), 0.45 * inner + 0.55 * middle),
        (side * (x + 0.08), middle),
        (side * (x + 0.29), outer),
    )
    sheet.line(arc, person.brow_thickness * 1.35, person.brow)
    sheet.line(arc[:12], person.brow_thickness * 1.6, person.brow)
    if down > 0.1:
        line = curve((side * 0.07, inner - 0.1), (side * (0.085 - 0.02 * down), inner + 0.1))
        sheet.line(line, 0.04, 1 - 0.4 * down, layer="fine")


def _forehead(sheet: Sheet, person: Person, units: list[float]) -> None:
    creased = max(units[1], units[2])
    depth = 0.32 * max(0.0, creased - 0.15) + 0.12 * max(0.0, person.age - 0.6)
    if depth > 0.03:
        reach = 0.25 + 0.35 * units[2]
        lift = 0.05 * units[1] * (1 - units[2])
        for y in (-0.62, -0.71, -0.80):
            at = person.eye_y + y + 0.05
            right = ((0.45 * reach, at), (reach, at + 0.03))
            left = ((-reach, at + 0.03), (-0.45 * reach, at))
            sheet.line(curve(*left, (0, at + 0.02 - lift), *right), 0.03, 1 - depth, layer="fine")


def _nose(sheet: Sheet, person: Person, units: list[float], side_units: tuple[list[float], list[float]]) -> None:
    wrinkle, skin = units[9], person.skin
    y = person.eye_y + person.nose_length - 0.06 * wrinkle - 0.02 * units[10]
    wide = person.nose_width * (1 + 0.12 * wrinkle + 0.1 * units[12])
    sheet.blob(0, y - 0.06, 0.6 * wide, 0.08, 1.12, "soft")
    for side in (-1, 1):
        ridge = curve((side * 0.1, person.eye_y - 0.1), (side * 0.055, person.eye_y + 0.12), (side * 0.08, y - 0.08))
        sheet.line(ridge, 0.06, 0.86, layer="fine")
        wing = curve((side * 0.85 * wide, y - 0.1), (side * wide, y - 0.02), (side * 0.7 * wide, y + 0.035))
        sheet.line(wing, 0.03, scaled(skin, 0.66))
        sheet.blob(side * 0.45 * wide, y + 0.02, 0.042, 0.024, scaled(skin, 0.36))
        if wrinkle > 0.1:
            for step in (0.0, 0.09, 0.18):
                mark = curve((0, person.eye_y - 0.04 + step), (side * 0.12, person.eye_y - 0.08 + step))
                sheet.line(mark, 0.035, 1 - 0.42 * wrinkle, layer="fine")
        own = side_units[side > 0]
        fold = 0.1 + 0.1 * person.age + 0.26 * own[12] + 0.24 * own[10] + 0.3 * own[9]
        out = 0.1 * own[12] - 0.02 * own[15]
        knots = (
            (side * (wide + 0.04), y - 0.05 - 0.05 * own[9]),
            (side * (0.31 + out), y + 0.12),
            (side * (0.38 + out), person.mouth_y - 0.04 - 0.05 * own[12]),
        )
        sheet.line(curve(*knots), 0.045, 1 - min(fold, 0.5), layer="fine")


def _mouth(sheet: Sheet, person: Person, units: list[float], side_units: tuple[list[float], list[float]]) -> None:
    left, right = side_units
    jaw, part, raised, lowered = units[26], units[25], units[10], units[16]
    tight = max(units[23], units[24])
    narrow = person.mouth_width * (1 - 0.12 * tight - 0.2 * jaw - 0.04 * units[17])
    width = [narrow - 0.01 * u[15] + 0.12 * u[12] + 0.15 * u[20] for u in side_units]
    y = person.mouth_y - 0.02 * units[17]
    corner = [
        y + person.corner_rest - 0.15 * u[12] + 0.14 * u[15] + 0.05 * u[20] + 0.16 * jaw + 0.03 * u[16]
        for u in side_units
    ]
    smile = 0.5 * (left[12] + right[12])
    top = y - 0.085 * raised - 0.05 * units[9] - 0.03 * part + 0.025 * smile - 0.035 * units[15] - 0.03 * jaw
    gap = 0.02 * (part > 0.2) + 0.09 * part + 0.45 * jaw * max(part, 0.6) + 0.08 * lowered * max(part, 0.4)
    gap *= 1 - 0.8 * tight
    bottom = top + gap - 0.03 * units[17] * (gap < 0.02)
    x = np.where(LEFT, SPAN * width[0], SPAN * width[1])
    corner_y = np.where(LEFT, corner[0], corner[1])
    square = 2.0 + 1.6 * raised
    inner_up = top + (corner_y - top) * np.abs(SPAN) ** square
    inner_low = np.maximum(bottom + (corner_y - bottom) * np.abs(SPAN) ** (2.2 + 1.2 * units[20]), inner_up)
    thin = 1 - 0.65 * tight
    cupid = 1 - 0.28 * np.exp(-((SPAN / 0.16) ** 2))
    outer_up = inner_up - person.upper_lip * thin * (1 - 0.25 * smile) * (ARCH**0.8) * cupid
    outer_low = inner_low + person.lower_lip * thin * (1 - 0.15 * smile) * ARCH**0.7 * (1 + 0.25 * units[17])
    lips = person.lips

    def band(a: np.ndarray, b: np.ndarray, wider: float = 1.0) -> np.ndarray:
        return np.concatenate([np.stack([wider * x, a], 1), np.stack([wider * x, b], 1)[::-1]])

    if person.beard in ("moustache", "full", "goatee"):
        moustache = band(outer_up - 0.11 * ARCH**0.5 - 0.01, outer_up + 0.015, wider=1.12)
        sheet.add(moustache, mix(person.hair, person.skin, 0.1))
    sheet.add(band(outer_up, inner_up), scaled(lips, 0.88))
    sheet.add(band(inner_low, outer_low), lips)
    if gap > 0.02:
        sheet.add(band(inner_up, inner_low), (58, 18, 22))
        if jaw > 0.25:
            floor = inner_low - 0.35 * (inner_low - inner_up) * ARCH
            sheet.add(band(floor, inner_low), (168, 74, 78))
        shows = np.where(np.abs(SPAN) < 0.93 - 0.2 * jaw, 1.0 - 0.4 * jaw, 0.0)
        sheet.add(band(inner_up, np.minimum(inner_up + 0.1 * shows, inner_low)), (244, 240, 230))
        if max(lowered, units[20]) > 0.3:
            sheet.add(band(np.maximum(inner_low - 0.05 * shows, inner_up), inner_low), (232, 226, 214))
    else:
        sheet.line(np.stack([x, 0.5 * (inner_up + inner_low)], 1), 0.028 + 0.012 * tight, scaled(lips, 0.42))
    below = outer_low[len(SPAN) // 2] + 0.06
    sheet.line(curve((-0.16, below), (0, below + 0.015), (0.16, below)), 0.05, 0.86 - 0.22 * units[17], layer="fine")
    for side, own in zip((-1, 1), side_units, strict=True):
        if (hooked := own[15] + 0.7 * own[12]) > 0.15:
            at, edge = corner[side > 0], side * (width[side > 0] + 0.04)
            hook = curve((edge, at - 0.04), (edge + side * 0.02, at + 0.08 * own[15] + 0.03))
            sheet.line(hook, 0.035, 1 - 0.35 * min(hooked, 1), layer="fine")
    if (bunched := max(units[17] - 0.1, 0)) > 0:
        sheet.blob(0, person.chin - 0.16, 0.16, 0.08, 1 - 0.18 * bunched, "fine")


def _hair(sheet: Sheet, person: Person) -> None:
    if person.hair_style == "bald":
        return
    line = person.hairline
    crown = [(-1.02, -0.1), (-1.06, -0.6), (-0.72, -1.2), (0, -1.4), (0.72, -1.2), (1.06, -0.6), (1.02, -0.1)]
    if person.hair_style == "long":
        crown = [(-1.0, 0.9), (-1.16, -0.2), *crown[1:-1], (1.16, -0.2), (1.0, 0.9)]
    # The inner edge: the sides (x, y) at x > 0, mirrored for the left, around the forehead's middle.
    sides, middle = {
        "short": ([(0.93, -0.3), (0.84, -0.62), (0.45, line)], (0, line - 0.04)),
        "fringe": ([(0.92, -0.1), (0.82, -0.52), (0.4, -0.68)], (0.05, -0.64)),
        "long": ([(0.93, 0.5), (0.84, -0.35), (0.5, line + 0.06)], (0.05, line - 0.1)),
        "parted": ([(0.93, -0.2), (0.82, -0.56), (0.52, -0.78)], (-0.28, line - 0.12)),
    }[person.hair_style]
    inner = [*sides, middle, *((-x, y) for x, y in reversed(sides))]
    sheet.add(curve(*crown, *inner, closed=True), person.hair, flat=True)
    shine = curve((-0.55, -1.08), (-0.2, -1.17), (0.2, -1.15))
    sheet.line(shine, 0.1, 1.12, layer="soft", flat=True)


def _glasses(sheet: Sheet, person: Person) -> None:
    if person.glasses == "none":
        return
    frame = (34, 30, 32)
    power = 1.0 if person.glasses == "round" else 0.45
    rim = np.sign(CIRCLE) * np.abs(CIRCLE) ** power * ((0.27, 0.23) if power == 1 else (0.28, 0.19))
    rim = np.concatenate([rim, rim[:2]])
    for side in (-1, 1):
        sheet.line(rim + (side * person.eye_x, person.eye_y + 0.03), 0.034, frame)
        arm = np.array([(side * (person.eye_x + 0.27), person.eye_y), (side * 0.93, person.eye_y - 0.03)])
        sheet.line(arm, 0.04, frame)
    bridge = curve((-person.eye_x + 0.25, person.eye_y), (0, person.eye_y - 0.04), (person.eye_x - 0.25, person.eye_y))
    sheet.line(bridge, 0.034, frame)


def _occluder(sheet: Sheet, person: Person, view: View) -> None:
    a, b, c = view.occluder_place
    cloth = mix(person.shirt, (255 * a, 255 * b, 255 * c), 0.5)
    if view.occluder == "hand":
        # Fingers over one cheek, the chin or the mouth, from below.
        x, y, lean = (a - 0.5) * 1.5, 0.45 + 0.4 * b, (c - 0.5) * 0.5
        for finger, reach in enumerate((0.0, -0.1, -0.08, 0.05)):
            fx = x + 0.17 * (finger - 1.5)
            tip = (fx + lean * 0.6, y + reach)
            color = scaled(person.skin, 0.9 if finger % 2 else 0.96)
            sheet.line(curve((fx, 1.75), (fx, 1.2), tip), 0.2, color, layer="over", flat=True)
    elif view.occluder == "bar":
        angle, x, y = (c - 0.5) * np.pi, (a - 0.5) * 1.6, (b - 0.5) * 2.0
        along = np.array([np.cos(angle), np.sin(angle)]) * 3
        across = np.array([-np.sin(angle), np.cos(angle)]) * (0.08 + 0.1 * c)
        corners = [along + across, along - across, -along - across, -along + across]
        sheet.add(np.array(corners) + (x, y), cloth, layer="over", flat=True)
    elif view.occluder == "hat":
        brim = -0.62 - 0.2 * a
        shape = mirrored((0, -1.58), (0.7, -1.4), (1.06, -0.95), (1.1, brim), (0, brim + 0.08))
        sheet.add(shape, cloth, layer="over", flat=True)
        band = curve((-1.1, brim), (0, brim + 0.08), (1.1, brim))
        sheet.line(band, 0.16, scaled(cloth, 0.75), layer="over", flat=True)
    elif view.occluder == "scarf":
        top = 0.8 + 0.3 * a
        shape = mirrored((0, top + 0.08), (0.5, top), (1.05, top - 0.1), (1.3, 1.5), (1.2, 2.6), (0, 2.6))
        sheet.add(shape, cloth, layer="over", flat=True)


def draw_face(person: Person, view: View, units: np.ndarray, size: int) -> np.ndarray:
    """Draws `person` moving `units` (intensities by action unit number) as an RGB uint8 array (size, size, 3)."""
    finer = 3 if size <= 96 else 2
    wide = finer * size
    both = units.tolist()
    sides = ((units * (1 - view.asymmetry)).clip(0, 1).tolist(), (units * (1 + view.asymmetry)).clip(0, 1).tolist())
    jaw_drop = 0.2 * both[26] + 0.03 * both[25] - 0.02 * both[17]
    sheet = Sheet(person, view)
    _head(sheet, person, jaw_drop)
    _beard(sheet, person, jaw_drop)
    _forehead(sheet, person, both)
    _nose(sheet, person, both, sides)
    for side in (-1, 1):
        _eye(sheet, person, view, side, sides[side > 0])
    for side in (-1, 1):
        _brow(sheet, person, side, sides[side > 0])
    _mouth(sheet, person, both, sides)
    _hair(sheet, person)
    _glasses(sheet, person)
    _occluder(sheet, person, view)

    top, low = view.background
    color = Image.fromarray(np.linspace(top, low, wide).astype(np.uint8)[:, None, :].repeat(wide, 1))
    shades = {name: Image.new("L", (wide, wide), NEUTRAL_SHADE) for name in ("soft", "fine")}
    over = Image.new("RGBA", (wide, wide)) if view.occluder != "none" else color
    pictures = {"color": color, "over": over, **shades}
    sheet.draw({name: ImageDraw.Draw(picture) for name, picture in pictures.items()}, wide)

    picture: np.ndarray = np.asarray(color.reduce(finer), dtype=np.float32)
    for name, radius in (("soft", 0.035), ("fine", 0.009)):
        shade = shades[name].reduce(finer).filter(ImageFilter.GaussianBlur(radius * size))
        picture = picture * (np.asarray(shade, dtype=np.float32) / NEUTRAL_SHADE)[:, :, None]
    if over is not color:
        cover = np.asarray(over.reduce(finer), dtype=np.float32)
        alpha = cover[:, :, 3:] / 255
        picture = picture * (1 - alpha) + cover[:, :, :3] * alpha
    picture = lit(picture, view, person)
    if view.grey:
        picture = np.repeat(picture @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32), 3, axis=2)
    if view.blur > 0.002:
        sharp = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
        picture = np.asarray(sharp.filter(ImageFilter.GaussianBlur(view.blur * size)), dtype=np.float32)
    noise = np.random.default_rng(view.noise_seed).standard_normal((size, size, 1), dtype=np.float32)
    return np.clip(picture + np.float32(view.noise) * noise, 0, 255).astype(np.uint8)
