"""Names of common sounds: default labels, and a reference for the scores of sounds that are absent."""

# Everyday sounds, and the kinds of `processing.datasets.synthetic`.
COMMON_SOUNDS = tuple(
    name.strip()
    for line in """
    dog bark, cat meow, bird song, rooster, cow, horse, sheep, pig, frog, cricket, bee buzzing, lion roar
    monster growl, speech, a man speaking, a woman speaking, a child speaking, crowd chatter, whispering, singing
    choir, laughter, crying baby, coughing, sneezing, snoring, breathing, screaming, grunt, footsteps, hand claps
    applause, heartbeat, rain, thunder, wind, ocean waves, running water, water drops, fire, splash, car engine
    car horn, motorcycle, train, helicopter, airplane, boat, bicycle bell, tyres screeching, police siren
    door knock, door slam, creaking door, keys jangling, typewriter, clock ticking, alarm clock, fire alarm
    vacuum cleaner, washing machine, hammer, saw, drill, glass breaking, paper rustling, coins, dishes, zip
    camera shutter, telephone ringing, dial tone, busy tone, telephone keypad, beep, radio static, white noise, hum
    silence, explosion, gunshot, sword, arrow, laser, magic spell, punch, coin pickup, button click, error buzzer
    fanfare, piano, guitar, violin, flute, trumpet, organ, church bell, gong, xylophone, harp, synthesizer
    bass drum, snare drum, rising chirp, falling chirp, ambulance, ringing tone, blue noise, brown noise, pink noise
    geiger counter, steam train, bouncing ball, plucked string, rising scale, falling scale, major chord
    minor chord, diminished chord, warbling tone, steady tone, vowel ah, vowel ee, vowel oo, low then high beep
    high then low beep, bell then drum, drum then bell, sonar ping, morse code, orchestra, electronic music
    video game music, rock music
    """.strip().splitlines()
    for name in line.split(",")
)
