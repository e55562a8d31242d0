/* The least program that posix_spawn can start; linked statically, so that no loader runs. */
int main(void)
{
    return 0;
}
