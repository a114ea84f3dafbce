/* Prints the result of getaddrinfo(3) for a name: its number, and the addresses in their order, one a line. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int count, char **arguments)
{
	struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM };
	struct addrinfo *found = NULL;
	char text[INET6_ADDRSTRLEN];

	if (count != 2)
		return 1;
	printf("%d\n", getaddrinfo(arguments[1], NULL, &hints, &found));
	for (; found != NULL; found = found->ai_next) {
		const void *address = found->ai_family == AF_INET
			? (const void *)&((struct sockaddr_in *)found->ai_addr)->sin_addr
			: (const void *)&((struct sockaddr_in6 *)found->ai_addr)->sin6_addr;
		puts(inet_ntop(found->ai_family, address, text, sizeof(text)));
	}
	return 0;
}
