/* Recurses until the stack ends; `volatile` keeps the compiler from turning it into a loop. */
static int descend(volatile int depth) {
    volatile char frame[256];
    frame[0] = (char)depth;
    return depth < 0 ? 0 : descend(depth + 1) + frame[0];
}

int main(void) {
    return descend(0);
}
