"""Words that the synthetic tasks are made of: common ones, so that a small model has seen them."""

from __future__ import annotations

from typing import Final


def _phrases(text: str) -> tuple[str, ...]:
    """Return what stands between the commas."""
    return tuple(" ".join(phrase.split()) for phrase in text.split(","))


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Return what stands around the colon of each phrase."""
    halves = (phrase.partition(":") for phrase in _phrases(text))
    return tuple((first.strip(), second.strip()) for first, _, second in halves)


TOPICS: Final = _phrases("""
    the ocean, a thunderstorm, the moon, winter, a busy market, learning to swim, a lost dog, baking bread, the
    desert, a train journey, the rainforest, a birthday party, an old library, riding a bicycle, a camping trip, a
    first day of school, a football match, growing tomatoes, a rainy morning, the city at night, a mountain
    village, a garden, tea, playing the piano, a visit to the zoo, the Roman Empire, honey bees, electric cars, the
    water cycle, volcanoes, the history of paper, coffee, chess, friendship, honesty, patience, sleep, the human
    heart, gravity, rainbows, earthquakes, the printing press, solar power, public libraries, recycling, the
    internet, a family dinner, fishing, a walk in the forest, spring flowers, a snowy field, an orchestra, a
    lighthouse, a pirate ship, the night sky, a kind teacher, a brave firefighter, a small bakery, a job interview,
    saving money, healthy food, running a marathon, yoga, the Olympic Games, a robot, a dragon, a talking cat, a
    castle, a magic hat, the circus, a haunted house, time travel, space travel, Mars, dinosaurs, whales, eagles,
    horses, wolves, ants, butterflies, bridges, windmills, clocks, mirrors, umbrellas, bicycles, trains, airplanes,
    balloons, kites, candles, maps, letters, photographs, music, dancing, poetry, cooking, gardening, knitting,
    sailing, hiking, the beach, a river, a waterfall, an island, a cave, the North Pole, the savanna, a farm, a
    hospital, a museum, a theater, an airport, a coffee shop, penguins, a playground, a wedding, a surprise gift, a
    broken window, a hot summer day, moving to a new home, a long winter""")
"""What can be written about."""

CATEGORIES: Final = _phrases("""
    animals, fruits, vegetables, colors, countries, cities, sports, musical instruments, flowers, trees, birds,
    fish, planets, languages, jobs, school subjects, kitchen tools, pieces of furniture, clothes, drinks, desserts,
    spices, rivers, mountains, metals, board games, toys, vehicles, insects, emotions, hobbies, body parts, weather
    words, kinds of shoes, breakfast foods, farm animals, sea animals, things in a classroom, things in a garden,
    card games""")
"""What can be listed."""

NOUNS: Final = _phrases("""
    apple, river, window, teacher, bridge, candle, garden, letter, mountain, music, ocean, pencil, queen, rabbit,
    silver, ticket, umbrella, village, winter, yellow, basket, camera, doctor, engine, forest, guitar, honey,
    island, jacket, kitchen, lemon, market, needle, orange, paper, quiet, rocket, shadow, tiger, uncle, valley,
    wagon, bottle, castle, dragon, eagle, feather, ghost, hammer, insect, jungle, kettle, lantern, mirror, nest,
    owl, pirate, rope, snow, tower, bread, cloud, dance, earth, fire, grass, horse, ice, juice, king, lake, moon,
    night, onion, piano, rain, sand, train, voice, water, bell, coat, desk, flower, glass, hat, ink, jewel, key,
    leaf, map, nurse, oven, plate, road, ship, tree""")
"""Single words to be used or avoided."""

CAPITALS: Final = _pairs("""
    France: Paris, Germany: Berlin, Italy: Rome, Spain: Madrid, Portugal: Lisbon, Greece: Athens, Austria: Vienna,
    Poland: Warsaw, Hungary: Budapest, Ireland: Dublin, Norway: Oslo, Sweden: Stockholm, Finland: Helsinki,
    Denmark: Copenhagen, Belgium: Brussels, Russia: Moscow, Ukraine: Kyiv, Turkey: Ankara, Egypt: Cairo, Kenya:
    Nairobi, Japan: Tokyo, China: Beijing, India: New Delhi, Thailand: Bangkok, Vietnam: Hanoi, South Korea: Seoul,
    Iran: Tehran, Iraq: Baghdad, Canada: Ottawa, Mexico: Mexico City, Cuba: Havana, Brazil: Brasilia, Argentina:
    Buenos Aires, Chile: Santiago, Peru: Lima, Colombia: Bogota, Australia: Canberra, New Zealand: Wellington,
    Switzerland: Bern, Romania: Bucharest, Bulgaria: Sofia, Serbia: Belgrade, Croatia: Zagreb, Iceland: Reykjavik,
    Morocco: Rabat, Ghana: Accra, Ethiopia: Addis Ababa, Uganda: Kampala, Nepal: Kathmandu, Pakistan: Islamabad,
    Afghanistan: Kabul, Jordan: Amman, Lebanon: Beirut, Syria: Damascus, Indonesia: Jakarta, Malaysia: Kuala
    Lumpur, the Philippines: Manila, Jamaica: Kingston, Venezuela: Caracas, Ecuador: Quito, Uruguay: Montevideo,
    the Netherlands: Amsterdam, Latvia: Riga""")
"""Country to capital."""

OPPOSITES: Final = _pairs("""
    hot: cold, big: small, up: down, left: right, day: night, fast: slow, happy: sad, old: young, full: empty,
    open: closed, early: late, rich: poor, strong: weak, light: dark, hard: soft, high: low, long: short, wet: dry,
    clean: dirty, loud: quiet, first: last, inside: outside, push: pull, love: hate, win: lose, buy: sell, begin:
    end, true: false, thick: thin, wide: narrow, deep: shallow, heavy: light, sweet: sour, brave: cowardly, near:
    far, above: below, before: after, always: never, sharp: dull, rough: smooth, tall: short, cheap: expensive,
    easy: difficult, alive: dead, awake: asleep, arrive: depart, north: south, east: west, accept: reject,
    increase: decrease""")
"""Word to opposite."""

PLURALS: Final = _pairs("""
    child: children, mouse: mice, foot: feet, tooth: teeth, goose: geese, man: men, woman: women, person: people,
    leaf: leaves, knife: knives, wolf: wolves, city: cities, baby: babies, box: boxes, bus: buses, potato:
    potatoes, ox: oxen, half: halves, life: lives, wife: wives, shelf: shelves, berry: berries, story: stories,
    lady: ladies, fox: foxes, dish: dishes, church: churches, watch: watches, hero: heroes, tomato: tomatoes,
    cactus: cacti, loaf: loaves, thief: thieves, calf: calves, day: days, key: keys, glass: glasses""")
"""Word to plural."""

YOUNG: Final = _pairs("""
    dog: puppy, cat: kitten, cow: calf, horse: foal, sheep: lamb, goat: kid, pig: piglet, chicken: chick, duck:
    duckling, goose: gosling, bear: cub, lion: cub, deer: fawn, kangaroo: joey, frog: tadpole, swan: cygnet, owl:
    owlet, fox: kit, rabbit: kit, eagle: eaglet""")
"""Animal to its young."""

PEOPLE: Final = _phrases(
    "Anna, Ben, Clara, David, Emma, Felix, Grace, Henry, Ivy, Jack, Kate, Leo, Mia, Noah, Olivia, Paul"
)
"""Who acts in word problems."""

THINGS: Final = _phrases(
    "apples, marbles, books, coins, stickers, pencils, cookies, shells, cards, balloons, stamps, eggs"
)
"""What they have."""

QUESTIONS: Final = _phrases("""
    What is a good gift for a friend?, Why is the sky blue?, How do I make tea?, What should I eat for breakfast?,
    Why do cats purr?, How can I sleep better?, What is a rainbow?, How do plants drink?, Why do leaves fall?, What
    makes a good leader?, How do I clean a window?, Why is exercise good?, What is money for?, How do birds fly?,
    What is a computer?, Why do we dream?, How can I save water?, What is the sun made of?, How do I learn to
    draw?, Why do people sing?, What is a holiday?, How do I stay calm?, What is a map used for?, Why do we need
    trees?, How do I write a letter?, What is a democracy?, How do I fix a flat tire?, Why is reading useful?, What
    is snow?, How do I plan a trip?, What does a doctor do?, How does a boat float?, Why do stars shine?, What is a
    good hobby?, How do I make a friend?, What is bread made of?, How do I train a dog?, Why are flowers colorful?,
    What is electricity?, How do I paint a wall?""")
"""What people ask."""
