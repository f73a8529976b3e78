/* The entry point: nothing but the hand-over to the command line. */
int main(void) { return 0; }
