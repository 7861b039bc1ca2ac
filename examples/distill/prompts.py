"""What the target is asked: chats about a topic, code, passages, sums, small talk, and plain text to continue."""

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

TEMPLATES = [
    "What is {}?", "Explain {} in simple terms.", "Explain {} to a five-year-old.", "Write a short essay about {}.",
    "Give me five interesting facts about {}.", "List the main advantages and disadvantages of {}.",
    "Write a short story about {}.", "Write a poem about {}.", "Write a haiku about {} and explain it.",
    "How does {} affect our daily life?", "Describe the history of {} in a few paragraphs.",
    "Write an email to a colleague about {}.", "Write a formal letter complaining about {}.",
    "What should a beginner know about {}?", "Create a lesson plan about {} for high school students.",
    "Write a blog post introduction about {}.", "Compare {} with something similar and discuss the differences.",
    "Why is {} important?", "Give step-by-step instructions for someone who wants to learn about {}.",
    "Write a dialogue between two friends discussing {}.", "Summarize the key ideas behind {}.",
    "What are common misconceptions about {}?", "Write a product description related to {}.",
    "Make a list of ten questions to ask an expert on {}.", "Write a speech about {} for a school assembly.",
    "What are the ethical issues raised by {}?", "Suggest three research topics related to {}.",
    "Write a news article about {}.", "Give me some advice about {}.", "Write a tweet and a headline about {}.",
    "I don't understand {}. Can you help me?", "Can you tell me more about {}?", "Write a quiz about {} with answers.",
    "What will {} look like in 50 years?", "Write a persuasive paragraph in favor of {}.",
    "Argue against {} in one paragraph.", "Write a detailed outline for a presentation on {}.",
    "What is the relationship between {} and science?", "Tell me a joke about {}.",
    "Define {} and give an example.", "Write a cover letter for a job connected with {}.",
    "Write the opening scene of a movie about {}.", "How can I get better at {}?", "Write a review of a book about {}.",
]
TOPICS = [
    "photosynthesis", "black holes", "the French Revolution", "machine learning", "climate change", "chess", "coffee",
    "gravity", "the Roman Empire", "healthy eating", "remote work", "electric cars", "dogs", "the ocean", "volcanoes",
    "democracy", "jazz music", "the human heart", "inflation", "public libraries", "time management", "meditation",
    "the internet", "renewable energy", "Shakespeare", "the water cycle", "artificial intelligence", "gardening",
    "the moon landing", "basketball", "vaccines", "recycling", "online privacy", "the Great Wall of China", "bees",
    "evolution", "job interviews", "saving money", "the stock market", "sleep", "dinosaurs", "robots", "cooking pasta",
    "learning a new language", "space travel", "ancient Egypt", "cats", "friendship", "loneliness", "public speaking",
    "the brain", "computer programming", "databases", "cybersecurity", "bicycles", "the piano", "photography",
    "rainforests", "earthquakes", "the solar system", "DNA", "antibiotics", "the printing press", "World War II",
    "the Industrial Revolution", "poverty", "education", "social media", "video games", "fashion", "architecture",
    "bridges", "airplanes", "trains", "tea", "chocolate", "bread baking", "yoga", "running a marathon", "stress",
    "parenting", "travel in Japan", "Paris", "New York City", "the Sahara desert", "polar bears", "whales", "birds",
    "insects", "a lost dog", "a dragon", "a lighthouse keeper", "a haunted house", "a wise old owl", "a magic forest",
    "a time machine", "the first day of school", "a rainy day", "autumn", "the sunset", "a detective", "a small town",
    "customer service", "project deadlines", "a late delivery", "a noisy neighbor", "team meetings", "leadership",
    "marketing", "starting a business", "taxes", "insurance", "mental health", "exercise", "vitamins", "diabetes",
    "statistics", "probability", "algebra", "geometry", "prime numbers", "quantum mechanics", "the periodic table",
    "chemical reactions", "electricity", "magnets", "thermodynamics", "light", "sound", "philosophy", "Buddhism",
    "mythology", "the Renaissance", "impressionist painting", "classical music", "film making", "theater", "poetry",
    "grammar", "world hunger", "human rights", "immigration", "the United Nations", "voting", "urban planning",
    "agriculture", "fishing", "forests", "plastic pollution", "nuclear power", "wind turbines", "3D printing",
    "blockchain", "operating systems", "the scientific method", "critical thinking", "creativity", "happiness",
]
CODE_TEMPLATES = [
    "Write a Python function to {}.", "Write a Python program to {} and explain how it works.",
    "How do I {} in JavaScript?", "Write a Java method to {}.", "Show me how to {} in Python with an example.",
    "Write a C++ function to {}.", "Write unit tests for a Python function that should {}.",
]
CODE_TOPICS = [
    "reverse a string", "check if a number is prime", "compute the factorial of a number", "sort a list of numbers",
    "find the largest element in an array", "count the words in a text file", "compute Fibonacci numbers",
    "remove duplicates from a list", "read a CSV file", "check if a string is a palindrome", "merge two dictionaries",
    "find the average of a list", "implement binary search", "implement a stack", "calculate the area of a circle",
    "convert Celsius to Fahrenheit", "find common elements of two lists", "generate random passwords",
    "count the vowels in a string", "implement a linked list", "fetch data from a web API", "parse a JSON string",
    "find the greatest common divisor", "transpose a matrix", "flatten a nested list", "validate an email address",
]
TEXTS = [
    "The meeting was moved to Thursday because several people were ill. Please bring your reports and be ready to "
    "discuss the budget for next year.",
    "Honeybees communicate the location of flowers by dancing. The angle of the dance shows the direction and its "
    "length shows the distance.",
    "Our company has grown from three employees to more than two hundred in five years, and we now sell our products "
    "in twelve countries.",
    "The old man walked slowly along the beach. He had lived in the village all his life, and he knew every stone.",
    "Regular exercise lowers the risk of heart disease, improves mood and helps people sleep better at night.",
    "The city council voted to build a new park on the site of the former factory. Work will begin in spring.",
    "Many students find mathematics difficult because each topic builds on the one before it.",
    "In 1969 two astronauts walked on the moon while a third stayed in orbit. Millions of people "
    "watched on television.",
    "I am writing to tell you that the shoes I ordered last week arrived in the wrong size and in the wrong color.",
    "Solar panels turn sunlight into electricity. Their price has fallen by about ninety percent in ten years.",
    "The restaurant is small but friendly. The soup was excellent, although we had to wait a long time for it.",
    "Trees in a forest share nutrients through a network of fungi that connects their roots.",
]
TEXT_TEMPLATES = [
    "Summarize this text: {}", "Rewrite this text in a more formal style: {}", "Make this text more concise: {}",
    "What is the main idea of this passage? {}", "Continue this text: {}", "Rewrite this for children: {}",
    "Ask three questions about this text and answer them: {}", "Give this text a title and explain your choice: {}",
    "Turn this text into bullet points: {}",
]
MATH_TEMPLATES = [
    "A shop sells {0} apples at {1} dollars each. How much money does it make?",
    "What is {0} plus {1}? Show your work.",
    "What is {0} times {1}?", "Solve for x: {1}x + {2} = {0}.",
    "Tom has {0} marbles and gives {1} away. How many remain?",
    "A train travels {0} miles in {1} hours. What is its average speed?", "What is {1} percent of {0}?",
    "A rectangle is {0} cm long and {1} cm wide. Find its area and its perimeter.",
]
CHAT = [
    "Hello!", "Hi, how are you?", "Who are you?", "What can you do?", "Tell me something interesting.",
    "I feel sad today.",
    "Tell me a story.", "Help me plan my week.", "What should I cook tonight?",
    "Plan a weekend trip for a family of four.",
    "Give me ideas for a birthday party.", "Recommend me a good book.", "What is the capital of France?",
    "What is the meaning of life?", "Give me tips for a healthy lifestyle.", "Write a song about love.",
    "Suggest names for a coffee shop.", "How do I make pancakes?", "Translate 'good morning' into French and Spanish.",
    "How do I fix a leaking tap?", "Write a thank-you note to my teacher.", "How do I ask my boss for a raise?",
    "Write a birthday message for my best friend.", "Name the planets in order.", "How many continents are there?",
]
PLAIN = [
    "Once upon a time", "The history of {} begins", "In this article, we will discuss {}",
    "The most important thing about {}",
    "{} is one of the", "The quick brown fox", "Scientists have recently discovered that {}", "Chapter 1: {}\n\n",
    "When people think of {}, they", "def main():\n    ", "import numpy as np\n\n",
    "It was a dark and stormy night when",
]
HELD_OUT_EVERY = 8  # every eighth topic, text and code task appears only in held-out prompts


def split(items, held_out):
    """The items for the held-out prompts, or those for training."""
    return [item for n, item in enumerate(items) if (n % HELD_OUT_EVERY == 3) == held_out]


def make_prompt(rng, held_out):
    """One prompt: the text that the target continues."""
    topic = rng.choice(split(TOPICS, held_out))
    kind = rng.random()
    if kind < 0.08:  # plain text, no chat
        text = rng.choice(PLAIN).format(topic)
        return text[0].upper() + text[1:] if not text.startswith(("def", "import")) else text
    if kind < 0.62:
        question = rng.choice(TEMPLATES).format(topic)
    elif kind < 0.74:
        question = rng.choice(CODE_TEMPLATES).format(rng.choice(split(CODE_TOPICS, held_out)))
    elif kind < 0.84:
        question = rng.choice(TEXT_TEMPLATES).format(rng.choice(split(TEXTS, held_out)))
    elif kind < 0.91:
        numbers = [rng.randrange(20, 1000), rng.randrange(2, 20), rng.randrange(2, 20)]
        question = rng.choice(MATH_TEMPLATES).format(*numbers)
    else:
        question = rng.choice(split(CHAT, held_out))
    return chat_text(question)


def chat_text(question):
    """The target's chat template, with its default system prompt."""
    turns = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
    return turns + "<|im_start|>assistant\n"
